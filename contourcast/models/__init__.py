"""The networks that redraw the tumour as it is today."""
