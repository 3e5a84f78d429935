"""Commands of a distribution that is not ours."""

import click


@click.command()
def hello() -> None:
    """Say hello."""
    click.echo("hello")


@click.command()
def crash() -> None:
    """Fail as a bug would."""
    raise ZeroDivisionError("division by zero")
