"""Settings for a command: the environment, and over it what the command line says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from s2d.errors import InvalidRequest

if TYPE_CHECKING:
    from s2d.settings import Settings


def read_settings(**given: Any) -> Settings:
    """`given` values that are None count as not said.

    Raises:
        InvalidRequest: a value that is none, with the name of its variable.
    """
    from pydantic import ValidationError

    from s2d.settings import Settings

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as err:
        wrong = "; ".join(f"S2D_{str(e['loc'][0]).upper()}: {e['msg']}" for e in err.errors())
        raise InvalidRequest(f"A setting cannot be used. {wrong}.") from err
