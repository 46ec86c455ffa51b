"""Output of the commands: text, tables, plots, the HTML report."""
