"""Prior similarity of captions and images, for the dynamic margin."""
