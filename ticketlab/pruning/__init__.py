"""Pure arithmetic on weights: saliency, allocation, mask. No files, no printing, no global seed."""
