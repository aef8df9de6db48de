"""``python -m genai_assets`` is ``genai``."""

from genai_assets.cli import app

if __name__ == "__main__":
    app(prog_name="genai")
