"""How a conversation becomes one prompt.

The released checkpoints know no roles: earlier rounds were simply part of the text. So a conversation is its texts in
order, an answer after a space, everything else on a new line, and a single question is exactly that question:

    What is this? a dog
    What colour is it?
"""

# Images and videos of a message come before its text, where the checkpoints saw them, unless the message has several
# texts: those were put in order on purpose. A conversation that ends with an answer is a finished one and is closed.
CHAT_TEMPLATE = """\
{%- macro placeholder(block) -%}
    {%- if block['type'] == 'image' -%}<image>
    {%- elif block['type'] == 'video' -%}<video>
    {%- elif block['type'] != 'text' -%}
        {{- raise_exception("message part of type '" ~ block['type'] ~ "': use 'text', 'image' or 'video'") -}}
    {%- endif -%}
{%- endmacro -%}
{%- macro body(message) -%}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- set texts = message['content'] | selectattr('type', 'equalto', 'text') | list -%}
        {%- if texts | length < 2 -%}
            {%- for block in message['content'] %}{{ placeholder(block) }}{% endfor -%}
            {%- for block in texts %}{{ block['text'] }}{% endfor -%}
        {%- else -%}
            {%- for block in message['content'] -%}
                {{- block['text'] if block['type'] == 'text' else placeholder(block) -}}
            {%- endfor -%}
        {%- endif -%}
    {%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
    {%- if message['role'] == 'assistant' -%}
        {%- if not loop.first %}{{ ' ' }}{% endif -%}
        {%- generation -%}
            {{- body(message) -}}
            {%- if loop.last and not add_generation_prompt %}{{ eos_token }}{% endif -%}
        {%- endgeneration -%}
    {%- else -%}
        {%- if not loop.first %}{{ '\\n' }}{% endif -%}
        {{- body(message) -}}
    {%- endif -%}
{%- endfor -%}
"""


def join_history(history: list[dict[str, str]], instruction: str) -> str:
    """Put earlier rounds in front of an instruction, in the words of the chat template.

    Args:
        history: rounds `{"question": ..., "answer": ...}`, the earliest first.
        instruction: the current question.
    """
    return "".join(f"{turn['question']} {turn['answer']}\n" for turn in history) + instruction
