"""Rasters: TIFF, JPEG 2000 and 16-bit PNG by rasterio, as red, green and blue."""
