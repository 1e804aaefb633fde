from workbench.cli import main

if __name__ == "__main__":  # spawned processes import this file under another name
    main()
