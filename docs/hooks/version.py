"""MkDocs hook: the header of every page says which version it documents."""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig

import sirius_dspy


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the version to the site's name, which the theme shows in the header."""
    config.site_name = f"{config.site_name} {sirius_dspy.__version__}"
    return config
