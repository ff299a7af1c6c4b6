"""The fake `cupyx`: what tells whether something waited for the device."""

from cupy._array import DeviceSynchronized, allow_synchronize

__all__ = ["DeviceSynchronized", "allow_synchronize"]
