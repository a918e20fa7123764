"""The ledger of claims: evidence, verdicts at several looks, the page and its picture, and what to train next."""
