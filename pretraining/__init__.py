"""The three pretrainings: scene classes, views, modalities without pairs."""
