"""The checks of `stabwatch doctor`."""
