"""The comparison of two models: statistics, tables, plots and the html page."""
