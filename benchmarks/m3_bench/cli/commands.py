"""What a command is added to."""

import argparse

Commands = argparse._SubParsersAction[argparse.ArgumentParser]
