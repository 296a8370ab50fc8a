"""Thyroid ultrasound: nodule mask and TI-RADS category from one image."""
