"""How the command line says no."""


def refused(answer: tuple[int, str, str], *said: str) -> str:
    """Check that the answer is one clear line and exit code 2; return the line."""
    code, out, err = answer
    assert code == 2, out + err
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert "Traceback" not in out + err
    for text in said:
        assert text in err
    return err
