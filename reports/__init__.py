"""What a person looks at: tables, curves, the HTML page, comparisons of experiments."""
