"""`report.html`: the whole run on one page that needs nothing but itself."""

from __future__ import annotations

import os
from pathlib import Path

from irpo_megatron.errors import UserError
from irpo_megatron.report.run_files import Run, load_run
from irpo_megatron.report.sections.accuracy import accuracy_section
from irpo_megatron.report.sections.candidates import candidates_section
from irpo_megatron.report.sections.cost import cost_section
from irpo_megatron.report.sections.headline import headline
from irpo_megatron.report.sections.pair_yield import pair_yield_section
from irpo_megatron.report.sections.samples import sample_browser
from irpo_megatron.report.sections.settings import environment_table
from irpo_megatron.report.sections.training import training_section

PAGE = "report.html"
_TEMPLATES = Path(__file__).parent / "templates"


def write_report(run_dir: Path) -> Path:
    """Write `report.html` at the top of the run directory; it appears whole or not at all.

    Raises:
        UserError: the directory is no run directory, a committed file is broken, or the report's libraries are missing.
    """
    path = run_dir / PAGE
    temporary = path.with_name(f".{PAGE}.{os.getpid()}.tmp")
    temporary.write_text(render(load_run(run_dir)), encoding="utf-8")
    os.replace(temporary, path)
    return path


def render(run: Run) -> str:
    """The page of a run: a function of the run directory alone, without the date of its writing."""
    try:
        import jinja2
        import matplotlib  # noqa: F401 - drawn with further down; asked for here to fail in one place
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed",
            "the report is drawn by matplotlib and Jinja2",
            "pip install 'irpo-megatron[report]'",
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        head=headline(run),
        sections=[
            accuracy_section(run),
            training_section(run),
            candidates_section(run),
            pair_yield_section(run),
            cost_section(run),
        ],
        samples=sample_browser(run),
        config_text=run.config_text,
        environment=environment_table(run),
    )
