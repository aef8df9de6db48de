"""Templates of the pages that are written: one way to load and fill them.

Belongs here: how a template behaves (what is put in is escaped, a name that is missing is an error). The templates lie
beside the modules that fill them.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template


def page_template(package: str, name: str, **filters: Callable[..., Any]) -> "Template":
    """A template of a package, for example ``("genai_assets.evaluation", "report.html.j2")``.

    Args:
        package: where the file lies.
        name: of the file.
        filters: further ones, by name.

    Raises:
        jinja2.TemplateNotFound: there is no such file.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(package, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(name)
