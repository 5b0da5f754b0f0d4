"""What a data set holds, in figures and plots."""
