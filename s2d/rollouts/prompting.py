"""What a plan adds to every prompt, written into the chat template itself.

The template is the one place that training, evaluation and every server go through, and it is saved with the student:
whoever asks the student later gets the prompt that it was trained on, without knowing of it. A system message or a
template argument that the caller gives himself wins.
"""

from __future__ import annotations

import json

from s2d.plan.prompting import Prompting


def prompted(template: str, prompting: Prompting) -> str:
    """The chat template with the plan's additions before it; the same template when there are none."""
    return "".join([*_arguments(prompting), *_system(prompting), *_suffix(prompting), template])


def prompted_once(template: str, prompting: Prompting) -> str:
    """`prompted`, unless the template begins with the same additions, as that of an earlier job's student does."""
    added = prompted("", prompting)
    return template if template.startswith(added) else added + template


def _arguments(prompting: Prompting) -> list[str]:
    return [
        f"{{%- if {name} is not defined %}}{{% set {name} = {_literal(value)} %}}{{% endif -%}}"
        for name, value in sorted(prompting.template.items())
    ]


def _system(prompting: Prompting) -> list[str]:
    if prompting.system is None:
        return []
    message = f"{{'role': 'system', 'content': {_literal(prompting.system)}}}"
    return [
        f"{{%- if messages[0]['role'] != 'system' %}}{{% set messages = [{message}] + messages %}}{{% endif -%}}",
    ]


def _suffix(prompting: Prompting) -> list[str]:
    if prompting.suffix is None:
        return []
    # Content in parts (images) is left as it is.
    return [
        "{%- if messages[-1]['role'] == 'user' and messages[-1]['content'] is string %}"
        "{% set messages = messages[:-1] + [{'role': 'user', 'content': messages[-1]['content'] + "
        f"{_literal(prompting.suffix)}}}] %}}{{% endif -%}}"
    ]


def _literal(value: object) -> str:
    """As jinja reads it: JSON, but characters beyond the basic plane as they are, where JSON writes two halves."""
    return json.dumps(value, ensure_ascii=False)
