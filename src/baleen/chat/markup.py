"""The spelling of the V3.2 text format: special tokens, call tags and the fixed paragraphs around tools.

Only spelling lives here. Where each piece goes is told in `encoding.py`, how it is read back in `parser.py`. The
special tokens are single tokens of the vocabulary; the call tags are ordinary text around the one special `｜DSML｜`.
A vocabulary that we train ourselves has the strings that the format always writes the same way as tokens too.
"""

from __future__ import annotations

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
THINK = "<think>"
THINK_END = "</think>"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
DSML = "｜DSML｜"

SPECIAL_TOKENS = (BOS, EOS, PAD, THINK, THINK_END, USER, ASSISTANT, DSML)
"""In the order of their ids in a vocabulary that we train: 0, 1, 2 ..."""

CALLS_OPEN = f"<{DSML}function_calls>"
CALLS_CLOSE = f"</{DSML}function_calls>"
INVOKE_OPEN = f'<{DSML}invoke name="'
INVOKE_CLOSE = f"</{DSML}invoke>"
PARAMETER_OPEN = f'<{DSML}parameter name="'
PARAMETER_CLOSE = f"</{DSML}parameter>"

RESULTS_OPEN = "<function_results>"
RESULTS_CLOSE = "</function_results>"

RESPONSE_FORMAT = "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"
DEVELOPER_MESSAGE = "\n\n# The user's message is: "

TOOLS_BEFORE = f"""## Tools

You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "{CALLS_OPEN}" block like the following as part of your reply to the user:
{CALLS_OPEN}
{INVOKE_OPEN}$FUNCTION_NAME">
{PARAMETER_OPEN}$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE{PARAMETER_CLOSE}
...
{INVOKE_CLOSE}
{INVOKE_OPEN}$FUNCTION_NAME2">
...
{INVOKE_CLOSE}
{CALLS_CLOSE}

String and scalar parameters should be specified as is without any escaping or quotes, \
while lists and objects should use JSON format. \
The "string" attribute should be set to "true" for string type parameters \
and "false" for other types (numbers, booleans, arrays, objects).

If the thinking_mode is enabled, then after function results you should strongly consider outputting a thinking block. \
Here is an example:

{CALLS_OPEN}
...
{CALLS_CLOSE}

{RESULTS_OPEN}
...
{RESULTS_CLOSE}

{THINK}...thinking about results{THINK_END}

Here are the functions available in JSONSchema format:
<functions>
"""
TOOLS_AFTER = "\n</functions>\n"

FIXED_TEXTS = (
    f"\n\n{TOOLS_BEFORE}",
    TOOLS_AFTER,
    f"\n\n{CALLS_OPEN}\n{INVOKE_OPEN}",
    f'">\n{PARAMETER_OPEN}',
    '" string="true">',
    '" string="false">',
    f"{PARAMETER_CLOSE}\n{PARAMETER_OPEN}",
    f"{PARAMETER_CLOSE}\n{INVOKE_CLOSE}\n{INVOKE_OPEN}",
    f"{PARAMETER_CLOSE}\n{INVOKE_CLOSE}\n{CALLS_CLOSE}",
    f"\n\n{RESULTS_OPEN}\n<result>",
    "</result>\n<result>",
    f"</result>\n{RESULTS_CLOSE}\n\n",
)
"""What the format writes letter for letter between the words that differ. As one token each, the paragraph about tools
costs 1 token for 330, and a call with one argument about 10 for 50: what a small model has to say is then mostly what
it has to decide. The text stays the same to the byte."""
