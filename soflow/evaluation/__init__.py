"""Sample quality measured with torch-fidelity: FID, KID, precision, recall, Inception score, class consistency."""
