"""A lesion in an ultrasound image, its mask and its risk: what thyroid and breast share."""
