"""One thread for all tests: sums, and so the last bits of results, depend on the number of threads."""

import torch

torch.set_num_threads(1)
