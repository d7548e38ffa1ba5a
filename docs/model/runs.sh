# SPDX-License-Identifier: Apache-2.0
# The runs of test/tools/model.sh:
#   name | model | expected result | flags of spin | of the compiler | of pan
# The variables hold flags of more than one run. Results: ok: searched to the end, nothing found;
# S1, S2, S3, S4, END as in README.md; cycle: a fair run that never gets there.
OWNER="-DNF=3 -DSTART_OWNER"
CREATE="-DNF=3 -DSTART_CREATE"
SAFE="-O1 -DSAFETY -DNOFAIR |"
FIND="-O0 -DSAFETY -DNOFAIR | -m10000 -w20"
LIVE="-O1 -DNOREDUCE -DNFAIR=3 | -a -f -m200000 -w20"
ENDS="-O1 -DSAFETY | -m100000 -w22"
LOOK="-O1 -DSAFETY | -E -m100000 -w22"
UNFAIR="-O1 -DNOREDUCE -DNFAIR=3 | -a -m200000 -w20"

runs() {
	cat <<END
refs-no-fault-owner      | safety | ok  | -DNF=4 -DSTART_OWNER | $SAFE
refs-no-fault-create     | safety | ok  | $CREATE -DSET_ERR | $SAFE
refs-cuts-owner          | safety | ok  | $OWNER -DNCUT=2 | $SAFE
refs-cut-create          | safety | ok  | $CREATE -DNCUT=1 | $SAFE
refs-crash-owner         | safety | ok  | $OWNER -DNCRASH=2 -DNRESTART=2 -DOWNER_CRASH | $SAFE
refs-crash-create        | safety | ok  | $CREATE -DNCRASH=1 -DNRESTART=1 -DOWNER_CRASH | $SAFE
refs-any-order           | safety | ok  | $OWNER -DANY_ORDER -DNREPEAT=2 | $SAFE
mutant-no-pin            | safety | S4  | $OWNER -DMUTANT_NO_PIN | $FIND
mutant-accept-at-once    | safety | S4  | $OWNER -DMUTANT_ACCEPT_AT_ONCE | $FIND
mutant-reclaim-first     | safety | S1  | $OWNER -DNCUT=1 -DMUTANT_RECLAIM_FIRST | $FIND
mutant-unpinned-read     | safety | S1  | $OWNER -DMUTANT_UNPINNED_READ | $FIND
mutant-old-session       | safety | END | $OWNER -DNCUT=1 -DMUTANT_OLD_SESSION | $FIND
mutant-no-generation     | safety | S2  | $OWNER -DNCUT=1 -DMUTANT_NO_GENERATION | $FIND
mutant-never-suspected   | safety | END | $OWNER -DNCRASH=1 -DMUTANT_NEVER_SUSPECTED | $FIND
mutant-survives-reconnect| safety | S2  | $OWNER -DNCUT=1 -DMUTANT_SURVIVES_RECONNECT | $FIND
mutant-early-up          | safety | S2  | $OWNER -DNCUT=1 -DMUTANT_EARLY_UP | $FIND
mutant-dead-pins         | safety | END | $OWNER -DNCUT=1 -DMUTANT_DEAD_PINS | $FIND
mutant-no-early          | safety | S4  | $CREATE -DNO_TIMEOUT -DMUTANT_NO_EARLY | $FIND
mutant-no-abandoned           | safety | S2  | $CREATE -DMUTANT_NO_HUSK | $FIND
mutant-no-tombstone      | safety | END | $OWNER -DANY_ORDER -DNREPEAT=1 \
	-DMUTANT_NO_TOMBSTONE | $FIND
mutant-counter           | safety | S2  | $OWNER -DNREPEAT=1 -DMUTANT_COUNTER | $FIND
mutant-refused-no-delete | safety | END | $CREATE -DNREPEAT=1 -DNCUT=1 \
	-DMUTANT_NO_DELETE_AFTER_REFUSAL | $FIND
live-no-fault-owner      | liveness | ok    | $OWNER | $LIVE
live-no-fault-create     | liveness | ok    | -DNF=2 -DSTART_CREATE | $LIVE
live-crashes             | liveness | ok    | -DNF=2 -DSTART_OWNER -DCRASHES | $LIVE
control-no-fairness      | liveness | cycle | -DNF=2 -DSTART_OWNER | $UNFAIR
live-mutant-suspected    | liveness | cycle | -DNF=2 -DSTART_OWNER -DCRASHES \
	-DMUTANT_NEVER_SUSPECTED | $LIVE
live-mutant-dead-pins    | liveness | cycle | -DNF=2 -DSTART_OWNER -DCRASHES \
	-DMUTANT_DEAD_PINS | $LIVE
live-mutant-no-answer    | liveness | cycle | -DNF=2 -DMUTANT_NO_ANSWER | $LIVE
live-mutant-no-settle    | liveness | cycle | -DNF=2 -DSTART_OWNER -DMUTANT_NO_SETTLE | $LIVE
live-mutant-asking       | liveness | cycle | -DNF=2 -DCRASHES -DMUTANT_ASKING_FORGOTTEN | $LIVE
credits                  | credits | ok    | | $LIVE
credits-more-than-class  | credits | ok    | -DCREDITS=5 -DCLASS=4 | $LIVE
credits-one-buffer       | credits | q_len | -DCREDIT_BUFS=1 | $LIVE
credits-mutant-costs     | credits | cycle | -DMUTANT_RETURN_COSTS | $LIVE
credits-mutant-held      | credits | cycle | -DMUTANT_HELD_UNTIL_ANSWERED | $LIVE
pair                     | pair | ok    | | $ENDS
pair-one-buffer          | pair | q_len | -DPAIR_BUFS=1 | $ENDS
pair-mutant-ready-first  | pair | early | -DMUTANT_READY_FIRST -DPAIR_BUFS=5 | $ENDS
pair-mutant-leaves-early | pair | fault | -DMUTANT_LEAVES_EARLY -DPAIR_BUFS=5 | $ENDS
pair-mutant-keeps-offer  | pair | fault | -DMUTANT_KEEPS_OFFER -DPAIR_BUFS=5 | $ENDS
pair-mutant-no-crossing  | pair | fault | -DMUTANT_NO_CROSSING | $ENDS
pair-mutant-forgets-ready | pair | apart | -DMUTANT_FORGETS_READY | $ENDS
pair-mutant-stays        | pair | apart | -DMUTANT_STAYS | $ENDS
ends                     | ends | ok | -DNREADS=2 | $ENDS
ends-mutant-look         | ends | shut  | -DMUTANT_LOOK | $ENDS
ends-mutant-cookie-late  | ends | shut  | -DMUTANT_COOKIE_LATE | $ENDS
ends-mutant-leave        | ends | gen   | -DMUTANT_LEAVE | $ENDS
ends-mutant-heir-late    | ends | gen   | -DMUTANT_HEIR_LATE | $ENDS
ends-mutant-free-early   | ends | holds | -DMUTANT_FREE_EARLY | $ENDS
ticket                   | ticket | ok | | $ENDS
ticket-stops             | ticket | ok | -DSTOPS | $ENDS
ticket-mutant-no-beside  | ticket | deadlock | -DSTOPS -DMUTANT_NO_BESIDE | $ENDS
ticket-mutant-no-kick    | ticket | deadlock | -DMUTANT_NO_KICK | $ENDS
ticket-mutant-arm-last   | ticket | deadlock | -DMUTANT_ARM_LAST | $ENDS
ticket-mutant-quiet      | ticket | deadlock | -DMUTANT_QUIET | $ENDS
ticket-mutant-leave      | ticket | deadlock | -DMUTANT_LEAVE_SILENTLY | $ENDS
again                    | again | ok | | $ENDS
again-time-out           | again | ok | -DTIMES_OUT | $ENDS
again-mutant-wait        | again | deadlock | -DMUTANT_WAIT | $ENDS
again-mutant-claim       | again | deadlock | -DMUTANT_CLAIM | $ENDS
again-mutant-no-help     | again | deadlock | -DMUTANT_NO_HELP | $ENDS
again-mutant-free-first  | again | block | -DMUTANT_FREE_FIRST | $ENDS
again-mutant-count-late  | again | quarantined | -DMUTANT_COUNT_LATE | $ENDS
look                     | look | ok | | $LOOK
look-mutant-check-first  | look | alive | -DMUTANT_CHECK_FIRST | $LOOK
look-mutant-marks-first  | look | alive | -DMUTANT_MARKS_FIRST | $LOOK
look-mutant-forks-first  | look | alive | -DMUTANT_FORKS_FIRST | $LOOK
look-mutant-running      | look | alive | -DMUTANT_RUNNING | $LOOK
look-mutant-leaves-late  | look | view  | -DMUTANT_LEAVES_LATE | $LOOK
look-mutant-mark-first   | look | view  | -DMUTANT_MARK_FIRST | $LOOK
look-mutant-no-hold      | look | view  | -DMUTANT_NO_HOLD | $LOOK
look-mutant-no-ended     | look | clean | -DMUTANT_NO_ENDED | $LOOK
future                   | future  | ok    | | $LIVE
future-mutant-quarantine | future  | landing     | -DMUTANT_NO_QUARANTINE | $LIVE
future-mutant-claim      | future  | completions | -DMUTANT_NO_CLAIM | $LIVE
future-mutant-generation | future  | landing     | -DMUTANT_NO_GENERATION | $LIVE
END
}

big_runs() {
	cat <<END
refs-crash-cut-owner     | safety | ok  | $OWNER -DNCRASH=1 -DNRESTART=1 -DNCUT=1 \
	-DOWNER_CRASH | $SAFE
refs-crash-cut-create    | safety | ok  | $CREATE -DNCRASH=1 -DNRESTART=1 -DNCUT=1 \
	-DOWNER_CRASH | $SAFE
refs-any-order-cut       | safety | ok  | $OWNER -DANY_ORDER -DNREPEAT=1 -DNCUT=1 | $SAFE
ends-three-reads         | ends | ok | | $ENDS
credits-six              | credits | ok    | -DCREDITS=6 -DCLASS=4 | $LIVE
END
}
