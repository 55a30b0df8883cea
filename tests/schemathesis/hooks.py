"""openapi.yaml describes an event stream as the text that it is; schemathesis reads it event by event."""

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
