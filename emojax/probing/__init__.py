"""One pass of network and CLIP over the images, and the statistics that it leaves behind."""
