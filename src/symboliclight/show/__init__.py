"""What people look at: plots, rasters, reports, the card of a model, the demo."""
