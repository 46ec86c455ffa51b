"""What the commands show: text, tables, plots, the HTML report."""
