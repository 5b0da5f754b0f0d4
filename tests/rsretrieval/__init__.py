"""The package that pip installs."""
