"""`python -m gitops_mcp` is the console script."""

from gitops_mcp.cli.main import main

if __name__ == "__main__":
    main()
