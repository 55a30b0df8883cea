"""openapi.yaml describes an event stream as the text that it is; schemathesis reads it event by event.

ADMIN is where the gateway's own listener is; with CALLERS=known a gateway takes nobody without a credential."""

import os

import schemathesis

EVENT = {
    "type": "object",
    "required": ["id", "event", "data"],
    "properties": {
        "id": {"type": "string", "pattern": r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}:[0-9]{1,20}$"},
        "event": {"enum": ["start", "token", "reasoning", "tool_call", "tool_result", "artifact", "done", "error"]},
        "data": {"type": "string"},
        "retry": {"const": 2000},
    },
    "additionalProperties": False,
}


@schemathesis.hook
def before_load_schema(context, raw_schema):
    raw_schema["components"]["schemas"]["EventStream"] = EVENT
    raw_schema["paths"]["/metrics"]["servers"] = [{"url": os.environ["ADMIN"]}]
    if os.environ["CALLERS"] == "known":
        needed(raw_schema)
        for path in raw_schema["paths"].values():
            for operation in path.values():
                if isinstance(operation, dict):
                    needed(operation)


def needed(place):
    """Strikes the credential that is none from the choice of them: an answer without one is then a finding."""
    if "security" in place:
        place["security"] = [one for one in place["security"] if one]
