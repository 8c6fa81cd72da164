"""pip's way in. Metadata and every dependency list stand in settings.ini."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]
notebooks = settings["notebooks_requirements"].split()
export = settings["export_requirements"].split()
shards = settings["shards_requirements"].split()

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    license="Apache-2.0",
    keywords=settings["keywords"],
    url=settings["git_url"],
    python_requires=">=" + settings["min_python"],
    packages=["rded"],
    package_data={"rded": ["*.csv"]},
    install_requires=settings["requirements"].split(),
    extras_require={"notebooks": notebooks, "export": export, "shards": shards, "dev": notebooks + export + shards + settings["dev_requirements"].split()},
    entry_points={"console_scripts": [settings["console_scripts"]]},
)
