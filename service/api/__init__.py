"""The routes: what comes in is checked here, and errors become answers."""
