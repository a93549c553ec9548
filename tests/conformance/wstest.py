"""Starts wstest, with three habits changed. Runs under the Python 2.7 that wstest needs.

The fuzzing server listens on 127.0.0.1 instead of everywhere; a process that is asked to end
(SIGTERM) writes down what it has found by then; and the reports are JSON alone, without hundreds of
HTML pages.
"""

from autobahntestsuite import fuzzing, wstest  # its import chooses the event loop of Twisted
from twisted.internet import reactor

write_reports = fuzzing.FuzzingFactory.createReports


def write_json_reports(self, produceHtml=True, produceJson=True):  # noqa: N803 - wstest's names
    write_reports(self, produceHtml=False, produceJson=True)


def write_reports_at_the_end(create):
    def __init__(self, *args, **kwargs):  # noqa: N807
        create(self, *args, **kwargs)
        reactor.addSystemEventTrigger("before", "shutdown", self.createReports)

    return __init__


fuzzing.FuzzingFactory.createReports = write_json_reports
fuzzing.FuzzingFactory.__init__ = write_reports_at_the_end(fuzzing.FuzzingFactory.__init__)
fuzzing.listenWS.__defaults__ = (None, 50, "127.0.0.1")  # contextFactory, backlog, interface

wstest.run()
