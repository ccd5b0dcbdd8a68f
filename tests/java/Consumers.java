// Kafka's own consumer, as a witness: reads a partition of a source and of its mirror at both isolation levels and says
// whether an application sees the same in both, record by record and offset by offset.
//
// Run by tests/src/java.rs with the source launcher of a JDK and Kafka's jars. A request is a line of four or five fields
// with tabs between them: how to reach source and mirror, topic, partition, and the first offset to read, where the two
// logs do not begin at the same one. The answer is a line too: `equal`, records, aborted records; or `different`, or
// `failed`, and why. It ends when its standard input does.

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Arrays;
import java.util.Collections;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.record.TimestampType;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

public final class Consumers {
    private static final String COMMITTED = "read_committed";
    private static final String UNCOMMITTED = "read_uncommitted";
    /** One read of a partition's next record; a broker that fails over is waited for. */
    private static final Duration PATIENCE = Duration.ofSeconds(30);
    /** Of two clusters that most tests share, and of two that a test has for itself. */
    private static final int KEPT = 8;

    /** By side, address and isolation level; the one that was used last at the end. */
    private final LinkedHashMap<String, KafkaConsumer<byte[], byte[]>> open = new LinkedHashMap<>(KEPT, 0.75f, true);

    public static void main(String[] arguments) throws IOException {
        Consumers consumers = new Consumers();
        BufferedReader requests = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String request = requests.readLine(); request != null; request = requests.readLine()) {
            System.out.println(consumers.answer(request).replace('\n', ' '));
            System.out.flush();
        }
    }

    private String answer(String request) {
        String[] fields = request.split("\t");
        try {
            TopicPartition partition = new TopicPartition(fields[2], Integer.parseInt(fields[3]));
            Seen seen = compare(fields[0], fields[1], partition, fields.length > 4 ? Long.valueOf(fields[4]) : null);
            return "equal\t" + seen.records + "\t" + seen.aborted;
        } catch (Different difference) {
            return "different\t" + difference.getMessage();
        } catch (Exception | OutOfMemoryError failure) {
            return "failed\t" + failure;
        }
    }

    private Seen compare(String source, String mirror, TopicPartition partition, Long from) throws Different {
        Log ours = log("source", source, COMMITTED, partition);
        Log all = log("source", source, UNCOMMITTED, partition);
        Log[] mirrored = {log("mirror", mirror, COMMITTED, partition), log("mirror", mirror, UNCOMMITTED, partition)};
        for (Log log : List.of(all, mirrored[0], mirrored[1])) {
            if (from == null) {
                require(log.start == ours.start, log, "starts at " + log.start + ", the source at " + ours.start);
            }
            require(log.end == ours.end, log, "ends at " + log.end + ", the source at " + ours.end);
        }
        for (Log log : List.of(ours, all, mirrored[0], mirrored[1])) {
            log.seek(from == null ? log.start : from);
        }
        Seen seen = new Seen();
        while (true) {
            ConsumerRecord<byte[], byte[]> wanted = ours.next();
            for (Log log : mirrored) {
                ConsumerRecord<byte[], byte[]> record = log.next();
                same(wanted, record, log);
                // A mirror keeps the time; where the source's is one of append, it is one of creation there.
                boolean created = record == null || record.timestampType() == TimestampType.CREATE_TIME;
                require(created, log, "has a time of append at " + at(record));
            }
            ConsumerRecord<byte[], byte[]> uncommitted = all.next();
            while (uncommitted != null && (wanted == null || uncommitted.offset() < wanted.offset())) {
                seen.aborted++;
                uncommitted = all.next();
            }
            same(wanted, uncommitted, all);
            if (wanted == null) {
                return seen;
            }
            seen.records++;
        }
    }

    private Log log(String side, String address, String isolation, TopicPartition partition) {
        // By side too: a cluster may be compared with itself.
        return new Log(side + ", " + isolation, consumer(side + " " + address, address, isolation), partition);
    }

    /** A consumer of this cluster at this level: a new one, or the one that has been used before. */
    private KafkaConsumer<byte[], byte[]> consumer(String user, String address, String isolation) {
        String name = user + " " + isolation;
        KafkaConsumer<byte[], byte[]> known = open.get(name);
        if (known != null) {
            return known;
        }
        if (open.size() == KEPT) {
            Iterator<KafkaConsumer<byte[], byte[]>> oldest = open.values().iterator();
            oldest.next().close();
            oldest.remove();
        }
        Map<String, Object> settings = Map.of(
            "bootstrap.servers", address,
            "isolation.level", isolation,
            // A position that the log does not have is an error, not a reason to go elsewhere.
            "auto.offset.reset", "none",
            "enable.auto.commit", "false",
            "fetch.max.wait.ms", "10",
            "retry.backoff.ms", "20",
            "reconnect.backoff.ms", "20",
            "reconnect.backoff.max.ms", "200");
        KafkaConsumer<byte[], byte[]> made =
            new KafkaConsumer<>(settings, new ByteArrayDeserializer(), new ByteArrayDeserializer());
        open.put(name, made);
        return made;
    }

    private static void same(ConsumerRecord<byte[], byte[]> wanted, ConsumerRecord<byte[], byte[]> record, Log log)
            throws Different {
        boolean bothOrNone = (wanted == null) == (record == null);
        require(bothOrNone, log, "has " + at(record) + " where the source has " + at(wanted));
        if (wanted == null) {
            return;
        }
        require(record.offset() == wanted.offset(), log, "has " + at(record) + " where the source has " + at(wanted));
        require(record.timestamp() == wanted.timestamp(), log, "has another timestamp at " + at(wanted));
        // Null is another key or value than an empty one.
        require(Arrays.equals(record.key(), wanted.key()), log, "has another key at " + at(wanted));
        require(Arrays.equals(record.value(), wanted.value()), log, "has another value at " + at(wanted));
        Header[] headers = record.headers().toArray();
        Header[] wantedHeaders = wanted.headers().toArray();
        boolean equal = headers.length == wantedHeaders.length;
        for (int index = 0; equal && index < headers.length; index++) {
            equal = headers[index].key().equals(wantedHeaders[index].key())
                && Arrays.equals(headers[index].value(), wantedHeaders[index].value());
        }
        require(equal, log, "has other headers at " + at(wanted));
    }

    private static String at(ConsumerRecord<byte[], byte[]> record) {
        return record == null ? "no further record" : "offset " + record.offset();
    }

    private static void require(boolean holds, Log log, String difference) throws Different {
        if (!holds) {
            throw new Different(log.partition + ": a consumer (" + log.name + ") " + difference);
        }
    }

    /** One partition as one consumer sees it. */
    private static final class Log {
        private final String name;
        private final KafkaConsumer<byte[], byte[]> consumer;
        private final TopicPartition partition;
        private final long start;
        private final long end;
        private Iterator<ConsumerRecord<byte[], byte[]>> records = Collections.emptyIterator();

        Log(String name, KafkaConsumer<byte[], byte[]> consumer, TopicPartition partition) {
            this.name = name;
            this.consumer = consumer;
            this.partition = partition;
            start = consumer.beginningOffsets(List.of(partition)).get(partition);
            end = consumer.endOffsets(List.of(partition)).get(partition);
        }

        void seek(long offset) {
            consumer.assign(List.of(partition));
            consumer.seek(partition, offset);
        }

        /** The next record; null at the end. Markers and what this level does not show are passed over. */
        ConsumerRecord<byte[], byte[]> next() {
            long deadline = System.nanoTime() + PATIENCE.toNanos();
            long position = -1;
            while (!records.hasNext()) {
                long reached = consumer.position(partition);
                if (reached >= end) {
                    return null;
                }
                if (reached > position) {
                    position = reached;
                    deadline = System.nanoTime() + PATIENCE.toNanos();
                } else if (System.nanoTime() - deadline > 0) {
                    throw new IllegalStateException(partition + " (" + name + "): stuck at " + position);
                }
                records = consumer.poll(Duration.ofMillis(200)).records(partition).iterator();
            }
            return records.next();
        }
    }

    /** Counts of what was compared. */
    private static final class Seen {
        private long records;
        private long aborted;
    }

    private static final class Different extends Exception {
        Different(String what) {
            super(what);
        }
    }
}
