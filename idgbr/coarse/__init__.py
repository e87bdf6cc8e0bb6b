"""Stage I: backbones and the coarse maps they make, or simulated ones."""
