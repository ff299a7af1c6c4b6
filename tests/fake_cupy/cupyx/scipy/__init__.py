"""The part of `cupyx.scipy` that the backend uses."""
