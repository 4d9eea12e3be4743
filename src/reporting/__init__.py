"""A sweep's folder in, a report out: results, statistics, figures, one page. Nothing here needs torch."""
