"""`python -m llmcourse …` is the same as `llmcourse …`, for shells where scripts are not on the path."""

from llmcourse.cli import main

raise SystemExit(main())
