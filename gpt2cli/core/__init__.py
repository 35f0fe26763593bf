"""The generation core. Torch lives here; nothing here downloads, prints or reads settings."""
