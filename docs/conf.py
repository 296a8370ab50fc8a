"""The site, which `make docs` builds; _ext makes the pages that come from code."""

import sys
from importlib.metadata import files
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import mtbench

project = "mtbench"
copyright = "the mtbench authors, Apache-2.0"  # noqa: A001 - Sphinx's name
version = release = mtbench.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "generated",
]
exclude_patterns = ["_build", "_ext", "generated/families.md"]
default_role = "py:obj"
nitpick_ignore_regex = [("py:.*", ".*")]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # published.md begins its tables at the third level

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Deviations", "Deviation"]
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Nothing is asked of other hosts: fonts are the system's, MathJax is one file out of a package.
html_theme = "furo"
html_title = f"mtbench {version}"
mathjax = next(file for file in files("sphinx-mathjax-offline") or [] if file.name == "tex-svg.js")
html_static_path = ["_static", str(mathjax.locate())]
mathjax_path = "tex-svg.js"
mathjax3_config = {"options": {"enableMenu": False}}
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
