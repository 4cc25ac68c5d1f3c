"""The command that shows the policies that ship."""

import click

from muaudit.command_line import as_json, put_json, shown


@click.command()
@click.argument("name", required=False)
@as_json
@shown
def policies(name: str | None, as_json: bool) -> None:
    """List the shipped policies, or print one as it is written, to start a house policy from."""
    from muaudit import policy

    if name is not None:
        text = policy.text_of(name)
        if as_json:
            put_json(policy.load(name).model_dump(mode="json"))
        else:
            click.echo(text, nl=False)
        return
    found = {one: policy.load(one).description for one in policy.shipped()}
    if as_json:
        put_json(found)
    else:
        click.echo("\n".join(f"{one:<16} {what}" for one, what in found.items()))


COMMANDS = (policies,)
