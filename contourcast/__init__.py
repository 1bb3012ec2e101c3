"""Carries a tumour's contour from the planning CT to each day's cone-beam CT."""
