"""What a batch is and how it is drawn."""
