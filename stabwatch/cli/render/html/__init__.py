"""An analysis as one HTML file that needs no network."""
