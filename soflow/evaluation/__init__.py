"""Sample quality through torch-fidelity: FID, KID, precision and recall, Inception score, class consistency."""
