"""What the tasks of dense prediction share: segmentation, depth and normals of one image."""
