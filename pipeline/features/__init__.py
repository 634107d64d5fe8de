"""Features of images and perceptual distances, by torch; the numbers come from them in analysis."""
