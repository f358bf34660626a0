"""What a browser would make of a page."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Every tag with its attributes, and the text in between."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data
