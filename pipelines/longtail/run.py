"""Does curation help? Trees on labeled pools with a long tail: `python pipelines/longtail/run.py --out longtail`."""

from longtail_command import main

if __name__ == "__main__":
    main()
